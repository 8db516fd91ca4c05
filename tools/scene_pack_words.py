"""Choices behind the scene pack: which emoji are in, in which order, and how English speaks of them.

Everything here was decided by eye on contact sheets of the three vendors at 14 to 64 px.
"""

# CLDR subgroups that hold single, drawable things, with the word for "how many <category>" (singular, plural).
# None: the subgroup has no everyday word, so nobody is asked to count it.
SUBGROUPS = {
    "animal-mammal": ("mammal", "mammals"),
    "animal-bird": ("bird", "birds"),
    "animal-amphibian": ("amphibian", "amphibians"),
    "animal-reptile": ("reptile", "reptiles"),
    "animal-marine": ("sea animal", "sea animals"),
    "animal-bug": ("bug", "bugs"),
    "plant-flower": ("flower", "flowers"),
    "plant-other": ("plant", "plants"),
    "food-fruit": ("fruit", "fruits"),
    "food-vegetable": ("vegetable", "vegetables"),
    "food-prepared": ("dish", "dishes"),
    "food-asian": ("dish", "dishes"),
    "food-sweet": ("sweet", "sweets"),
    "drink": ("drink", "drinks"),
    "dishware": None,
    "place-geographic": ("landscape", "landscapes"),
    "place-building": ("building", "buildings"),
    "place-religious": ("building", "buildings"),
    "place-other": None,
    "transport-ground": ("land vehicle", "land vehicles"),
    "transport-water": ("boat", "boats"),
    "transport-air": ("aircraft", "aircraft"),
    "hotel": None,
    "time": ("clock", "clocks"),
    "sky-weather": None,
    "event": None,
    "award-medal": ("award", "awards"),
    "sport": ("sports item", "sports items"),
    "game": ("toy", "toys"),
    "arts-crafts": None,
    "clothing": ("clothing item", "clothing items"),
    "sound": None,
    "music": None,
    "musical-instrument": ("instrument", "instruments"),
    "phone": ("phone", "phones"),
    "computer": None,
    "light-video": None,
    "book-paper": None,
    "money": None,
    "mail": None,
    "writing": ("writing tool", "writing tools"),
    "office": ("office item", "office items"),
    "lock": None,
    "tool": ("tool", "tools"),
    "science": ("lab tool", "lab tools"),
    "medical": None,
    "household": ("household item", "household items"),
}

# Things that are drawn alone and speak for themselves although their subgroup is left out.
EXTRA = ["ghost", "robot", "alien", "tooth", "bone", "brain"]

# Things their subgroup's everyday word does not fit.
NO_CATEGORY = {
    "paw prints", "pig nose", "feather", "wing", "spider web", "microbe", "spiral shell", "coral", "anchor", "ring buoy",
    "parachute", "seat", "satellite", "bus stop", "motorway", "railway track", "oil drum", "fuel pump", "wheel",
    "police car light", "horizontal traffic light", "vertical traffic light", "stop sign", "construction", "station",
    "baby bottle", "teapot", "ice", "cooking", "camping", "building construction", "brick", "rock", "wood",
    "crystal ball", "slot machine", "chess pawn", "mirror ball", "folding hand fan", "ring", "lipstick", "gem stone",
    "hair pick", "prayer beads", "empty nest", "nest with eggs", "rosette", "goal net", "flag in hole", "butter", "salt",
    "honey pot", "snail", "bouquet", "roll of paper", "fallen leaf", "maple leaf", "snowman", "chains", "link",
    "broken chain", "roller skate", "skateboard", "timer clock",
}  # fmt: skip

# Stop list: faces of clocks, near twins of another drawing, scenes without one thing in them, words nobody says.
DROP = {
    "monkey", "dog", "cat", "tiger", "horse", "cow", "pig", "mouse", "rabbit", "dragon face", "spouting whale",
    "guide dog", "service dog", "black cat", "water buffalo", "ox", "two-hump camel", "rat", "front-facing baby chick",
    "hatching chick", "black bird", "dodo", "pig nose", "baby chick", "goose", "microbe", "lion face", "fly",
    "fish cake with swirl", "flower playing cards", "shallow pan of food", "pot of food", "stuffed flatbread",
    "brown mushroom", "green apple", "clinking beer mugs", "clinking glasses", "pouring liquid", "teacup without handle",
    "bottle with popping cork", "cooked rice", "curry rice", "oden", "fork and knife with plate", "mount fuji",
    "camping", "national park", "building construction", "derelict house", "house with garden", "office building",
    "Japanese post office", "post office", "hospital", "bank", "hotel", "love hotel", "convenience store", "school",
    "department store", "wedding", "houses", "Japanese castle", "snow-capped mountain", "desert island",
    "foggy", "night with stars", "cityscape", "sunrise over mountains", "sunrise", "cityscape at dusk", "sunset",
    "bridge at night", "hot springs", "railway car", "high-speed train", "bullet train", "train", "metro", "light rail",
    "station", "tram car", "oncoming bus", "trolleybus", "oncoming police car", "oncoming taxi", "oncoming automobile",
    "bus stop", "mountain railway", "motorway", "construction", "vertical traffic light", "passenger ship", "ferry",
    "motor boat", "small airplane", "airplane departure", "airplane arrival", "suspension railway",
    "mountain cableway", "hourglass not done", "mantelpiece clock", "timer clock",
    "new moon", "waxing crescent moon", "first quarter moon", "waxing gibbous moon", "full moon", "waning gibbous moon",
    "last quarter moon", "waning crescent moon", "new moon face", "first quarter moon face", "last quarter moon face",
    "full moon face", "sun with face", "glowing star", "milky way", "sun behind cloud", "sun behind small cloud",
    "sun behind large cloud", "sun behind rain cloud", "cloud with rain", "cloud with snow", "cloud with lightning",
    "cloud with lightning and rain", "fog", "wind face", "umbrella with rain drops", "umbrella on ground",
    "snowman without snow", "shooting star", "performing arts", "softball", "cricket game", "badminton", "tennis",
    "bowling", "lacrosse", "tanabata tree", "moon viewing ceremony", "pine decoration", "admission tickets",
    "2nd place medal", "3rd place medal", "spade suit", "heart suit", "diamond suit", "club suit", "joker",
    "mahjong red dragon", "woman’s clothes", "man’s shoe", "woman’s sandal", "woman’s boot", "woman’s hat",
    "rescue worker’s helmet", "muted speaker", "speaker low volume", "speaker medium volume", "bell with slash",
    "musical notes", "level slider", "musical score", "mobile phone with arrow", "telephone receiver", "low battery",
    "trackball", "dvd", "camera with flash", "magnifying glass tilted right", "diya lamp", "closed book", "notebook",
    "notebook with decorative cover", "page with curl", "page facing up", "rolled-up newspaper", "bookmark tabs",
    "yen banknote", "euro banknote", "pound banknote", "money with wings", "chart increasing with yen", "e-mail",
    "incoming envelope", "envelope with arrow", "outbox tray", "inbox tray", "closed mailbox with lowered flag",
    "open mailbox with raised flag", "open mailbox with lowered flag", "ballot box with ballot", "black nib", "pen",
    "open file folder", "card index dividers", "calendar", "tear-off calendar", "spiral notepad", "card index",
    "chart decreasing", "round pushpin", "linked paperclips", "unlocked", "locked with pen", "locked with key",
    "old key", "hammer and pick", "hammer and wrench", "couch and lamp", "satellite antenna", "placard",
    "carp streamer", "Japanese dolls", "film frames", "page", "ledger", "custard", "mate", "speaker high volume",
    "thong sandal", "martial arts uniform", "pager", "elevator", "books", "green book", "orange book", "long drum",
    "studio microphone", "hair pick", "diving mask", "minibus", "sheaf of rice", "shaved ice", "chart increasing",
    "heart decoration", "identification card", "reminder ribbon", "clutch bag", "flat shoe", "wilted flower",
    "cyclone", "mobile phone off", "roasted sweet potato", "poultry leg", "carousel horse", "desert", "herb",
    "leaf fluttering in wind", "fallen leaf", "link", "lab coat", "hamsa", "drop of blood", "light bulb off",
}  # fmt: skip

# The face is the drawing that can be told apart at 14 px; it takes the animal's plain name, in every language.
FACE_OF = {
    "monkey face": "monkey", "dog face": "dog", "cat face": "cat", "tiger face": "tiger", "horse face": "horse",
    "cow face": "cow", "pig face": "pig", "mouse face": "mouse", "rabbit face": "rabbit",
}  # fmt: skip

# Everyday English in place of the official label.
RENAME = {
    "red apple": "apple", "honeybee": "bee", "lady beetle": "ladybug", "automobile": "car", "evergreen tree": "pine tree",
    "deciduous tree": "tree", "american football": "football", "wrapped gift": "gift", "gem stone": "gem",
    "locked": "padlock", "hourglass done": "hourglass", "magnifying glass tilted left": "magnifying glass",
    "cooking": "fried egg", "artist palette": "palette", "sport utility vehicle": "jeep", "articulated lorry": "lorry",
    "baguette bread": "baguette", "game die": "die", "1st place medal": "gold medal", "pool 8 ball": "billiard ball",
    "video game": "gamepad", "ear of corn": "corn", "meat on bone": "ham bone", "cheese wedge": "cheese",
    "hot beverage": "cup of tea", "soft ice cream": "ice cream cone", "locomotive": "steam train",
    "closed mailbox with raised flag": "mailbox", "horizontal traffic light": "traffic light", "flag in hole": "golf flag",
    "high-heeled shoe": "high heel", "beach with umbrella": "beach umbrella", "billed cap": "cap",
    "one-piece swimsuit": "swimsuit", "adhesive bandage": "bandage", "dollar banknote": "banknote",
    "hindu temple": "temple", "bowl with spoon": "bowl", "ping pong": "table tennis bat", "fried shrimp": "fried prawn",
    "nest with eggs": "nest", "headphone": "headphones", "rugby football": "rugby ball", "cup with straw": "paper cup",
    "sauropod": "long-necked dinosaur", "boxing glove": "boxing glove", "straight ruler": "ruler",
    "leafy green": "lettuce", "glass of milk": "glass of milk", "blue book": "book", "t-shirt": "t-shirt",
}  # fmt: skip

# No article and nothing to count.
MASS = {
    "popcorn", "bacon", "butter", "salt", "bread", "cheese", "corn", "broccoli", "garlic", "lettuce", "ginger root",
    "sushi", "spaghetti", "honey", "ice", "coral", "fire", "canned food", "sake", "yarn", "thread", "wood",
    "dna", "soap", "money", "field hockey", "ice hockey", "falafel", "fondue", "green salad", "curry", "bubbles",
}  # fmt: skip

# Always plural in English: no article, "are".
PLURAL = {
    "grapes", "cherries", "blueberries", "peanuts", "beans", "pancakes", "french fries", "chopsticks", "fork and knife",
    "paw prints", "glasses", "sunglasses", "goggles", "jeans", "gloves", "socks", "shorts", "briefs", "shopping bags",
    "ballet shoes", "prayer beads", "maracas", "headphones", "skis", "scissors", "chains", "crossed swords", "sparkles",
    "fireworks", "nesting dolls", "control knobs", "bubbles",
}  # fmt: skip

IRREGULAR_PLURALS = {
    "mouse": "mice", "goose": "geese", "ox": "oxen", "fish": "fish", "tropical fish": "tropical fish", "sheep": "sheep",
    "deer": "deer", "moose": "moose", "bison": "bison", "squid": "squid", "shrimp": "shrimp", "die": "dice",
    "wolf": "wolves", "maple leaf": "maple leaves", "four leaf clover": "four leaf clovers", "cactus": "cacti",
    "kitchen knife": "kitchen knives", "scarf": "scarves", "loaf": "loaves", "octopus": "octopuses",
    "cup of tea": "cups of tea", "glass of milk": "glasses of milk", "cut of meat": "cuts of meat",
    "roll of paper": "rolls of paper", "statue of liberty": "statues of liberty", "bow and arrow": "bows and arrows",
    "nut and bolt": "nuts and bolts", "computer mouse": "computer mice", "ice cream": "ice creams", "calf": "calves",
    "flying disc": "flying discs", "golf flag": "golf flags", "dress": "dresses", "auto rickshaw": "auto rickshaws",
}  # fmt: skip

# "an" or "a" where the first letter misleads.
ARTICLES = {"unicorn": "a", "hourglass": "an", "x-ray": "an", "euro banknote": "a", "ukulele": "a", "unicycle": "a"}

# The first concepts, best for learning first: one thing, told apart from all others at 14 px in every vendor, a short
# name, kinds mixed so that any prefix of the list is varied.
FIRST = """
panda; red apple; rocket; soccer ball; umbrella; frog; banana; bicycle; guitar; key;
fox; watermelon; cactus; balloon; crown; penguin; hamburger; sailboat; teddy bear; hammer;
pig face; doughnut; automobile; basketball; light bulb; elephant; pineapple; sunflower; trophy; camera;
octopus; carrot; airplane; kite; top hat; butterfly; pizza; rainbow; drum; magnet;
crab; strawberry; star; trumpet; alarm clock; owl; eggplant; helicopter; bullseye; candle;
lion; cupcake; palm tree; violin; dress; honeybee; mushroom; snowman; puzzle piece; pencil;
dog face; hot dog; rose; jack-o-lantern; bell; whale; lemon; tractor; boxing glove; backpack;
flamingo; lollipop; maple leaf; saxophone; gem stone; turtle; avocado; volcano; wrapped gift; telephone;
ladybug; croissant; taxi; bomb; envelope; snail; wine glass; fire engine; american football; chair;
zebra; pretzel; anchor; crystal ball; broom; cow face
""".replace("\n", " ").split(";")
FIRST = ["lady beetle" if name.strip() == "ladybug" else name.strip() for name in FIRST]
