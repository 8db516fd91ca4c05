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
    "paw prints", "pig nose", "feather", "wing", "spider web", "microbe", "spiral shell", "coral", "anchor",
    "ring buoy",
    "parachute", "seat", "satellite", "bus stop", "motorway", "railway track", "oil drum", "fuel pump", "wheel",
    "police car light", "horizontal traffic light", "vertical traffic light", "stop sign", "construction", "station",
    "baby bottle", "teapot", "ice", "cooking", "camping", "building construction", "brick", "rock", "wood",
    "crystal ball", "slot machine", "chess pawn", "mirror ball", "folding hand fan", "ring", "lipstick", "gem stone",
    "hair pick", "prayer beads", "empty nest", "nest with eggs", "rosette", "goal net", "flag in hole", "butter",
    "salt",
    "honey pot", "snail", "bouquet", "roll of paper", "fallen leaf", "maple leaf", "snowman", "chains", "link",
    "broken chain", "roller skate", "skateboard", "timer clock",
}  # fmt: skip

# Stop list: bodies whose face is in (see FACE_OF), drawings without one thing in them, things few people can name,
# words nobody says. Clock faces, maps, people, hands, signs and flags are left out by subgroup or by name already.
DROP = {
    "monkey", "dog", "cat", "tiger", "horse", "cow", "pig", "mouse", "rabbit", "microbe", "fish cake with swirl",
    "flower playing cards", "shallow pan of food", "camping", "national park", "building construction", "wedding",
    "foggy", "night with stars", "cityscape", "sunrise over mountains", "sunrise", "cityscape at dusk", "sunset",
    "bridge at night", "hot springs", "station", "motorway", "construction", "milky way", "fog", "wind face", "cyclone",
    "performing arts", "cricket game", "tanabata tree", "moon viewing ceremony", "pine decoration", "spade suit",
    "heart suit", "diamond suit", "club suit", "joker", "mahjong red dragon", "muted speaker", "speaker low volume",
    "speaker medium volume", "speaker high volume", "level slider", "diya lamp", "carp streamer", "custard", "mate",
    "chart increasing with yen", "e-mail", "incoming envelope", "envelope with arrow", "outbox tray", "inbox tray",
    "high voltage", "pouring liquid", "heart decoration", "reminder ribbon", "hair pick", "link", "hamsa", "alembic",
    "beach umbrella", "carousel horse", "martial arts uniform", "kaaba", "placard", "nazar amulet",
}  # fmt: skip

# Near twins of another drawing, and scenes more than things: good to have, last to learn.
LAST = {
    "dragon face", "spouting whale", "guide dog", "service dog", "black cat", "water buffalo", "ox", "two-hump camel",
    "rat", "front-facing baby chick", "hatching chick", "baby chick", "black bird", "dodo", "pig nose", "goose", "fly",
    "pot of food", "stuffed flatbread", "brown mushroom", "green apple", "clinking beer mugs", "clinking glasses",
    "teacup without handle", "bottle with popping cork", "cooked rice", "curry rice", "oden",
    "fork and knife with plate", "mount fuji", "derelict house", "house with garden", "office building",
    "Japanese post office", "post office", "hospital", "bank", "hotel", "love hotel", "convenience store", "school",
    "department store", "houses", "Japanese castle", "snow-capped mountain", "desert island", "railway car",
    "high-speed train", "bullet train", "train", "metro", "light rail", "tram car", "oncoming bus", "trolleybus",
    "oncoming police car", "oncoming taxi", "oncoming automobile", "bus stop", "mountain railway",
    "vertical traffic light", "passenger ship", "ferry", "motor boat", "small airplane", "airplane departure",
    "airplane arrival", "suspension railway", "mountain cableway", "hourglass not done", "mantelpiece clock",
    "timer clock", "new moon", "waxing crescent moon", "first quarter moon", "waxing gibbous moon", "full moon",
    "waning gibbous moon", "last quarter moon", "waning crescent moon", "new moon face", "first quarter moon face",
    "last quarter moon face", "full moon face", "sun with face", "glowing star", "sun behind cloud",
    "sun behind small cloud", "sun behind large cloud", "sun behind rain cloud", "cloud with rain", "cloud with snow",
    "cloud with lightning", "umbrella with rain drops", "umbrella on ground", "snowman without snow", "shooting star",
    "softball", "badminton", "tennis", "bowling", "lacrosse", "admission tickets", "2nd place medal",
    "3rd place medal", "woman’s clothes", "man’s shoe", "woman’s sandal", "woman’s boot", "woman’s hat",
    "rescue worker’s helmet", "bell with slash", "musical notes", "musical score", "mobile phone with arrow",
    "telephone receiver", "low battery", "trackball", "dvd", "camera with flash", "magnifying glass tilted right",
    "closed book", "notebook", "notebook with decorative cover", "page with curl", "page facing up",
    "rolled-up newspaper", "bookmark tabs", "yen banknote", "euro banknote", "pound banknote", "money with wings",
    "closed mailbox with lowered flag", "open mailbox with raised flag", "open mailbox with lowered flag",
    "ballot box with ballot", "black nib", "pen", "open file folder", "card index dividers", "calendar",
    "tear-off calendar", "spiral notepad", "card index", "chart increasing", "chart decreasing", "round pushpin",
    "linked paperclips", "unlocked", "locked with pen", "locked with key", "old key", "hammer and pick",
    "hammer and wrench", "couch and lamp", "satellite antenna", "Japanese dolls", "film frames", "ledger",
    "thong sandal", "pager", "elevator", "books", "green book", "orange book", "long drum", "studio microphone",
    "diving mask", "minibus", "sheaf of rice", "shaved ice", "identification card", "clutch bag", "flat shoe",
    "wilted flower", "roasted sweet potato", "poultry leg", "desert", "herb", "leaf fluttering in wind", "fallen leaf",
    "lab coat", "drop of blood", "rosette", "empty nest", "nest with eggs",
}  # fmt: skip

# The face is the drawing that can be told apart at 14 px; it takes the animal's plain name, in every language.
FACE_OF = {
    "monkey face": "monkey", "dog face": "dog", "cat face": "cat", "tiger face": "tiger", "horse face": "horse",
    "cow face": "cow", "pig face": "pig", "mouse face": "mouse", "rabbit face": "rabbit",
}  # fmt: skip

# Everyday English in place of the official label.
RENAME = {
    "red apple": "apple", "honeybee": "bee", "lady beetle": "ladybug", "automobile": "car",
    "evergreen tree": "pine tree", "deciduous tree": "tree", "american football": "football", "wrapped gift": "gift",
    "gem stone": "gem", "locked": "padlock", "hourglass done": "hourglass", "cooking": "fried egg",
    "magnifying glass tilted left": "magnifying glass", "artist palette": "palette", "sport utility vehicle": "jeep",
    "articulated lorry": "lorry", "baguette bread": "baguette", "game die": "die", "1st place medal": "gold medal",
    "pool 8 ball": "billiard ball", "video game": "gamepad", "ear of corn": "corn", "meat on bone": "ham bone",
    "cheese wedge": "cheese", "hot beverage": "cup of tea", "soft ice cream": "ice cream cone",
    "locomotive": "steam train", "closed mailbox with raised flag": "mailbox",
    "horizontal traffic light": "traffic light", "flag in hole": "golf flag", "high-heeled shoe": "high heel",
    "beach with umbrella": "beach umbrella", "billed cap": "cap", "one-piece swimsuit": "swimsuit",
    "adhesive bandage": "bandage", "dollar banknote": "banknote", "hindu temple": "temple",
    "bowl with spoon": "bowl", "ping pong": "table tennis bat", "fried shrimp": "fried prawn",
    "nest with eggs": "nest", "headphone": "headphones", "rugby football": "rugby ball", "cup with straw": "paper cup",
    "sauropod": "long-necked dinosaur", "straight ruler": "ruler", "leafy green": "lettuce", "blue book": "book",
    "oncoming automobile": "oncoming car", "teacup without handle": "teacup",
    "bottle with popping cork": "champagne bottle", "fork and knife with plate": "dinner plate",
    "notebook with decorative cover": "decorated notebook", "magnifying glass tilted right": "reading glass",
    "bell with slash": "crossed-out bell", "mobile phone with arrow": "ringing phone",
    "camera with flash": "flashing camera", "tennis": "tennis racket", "badminton": "badminton racket",
    "bowling": "bowling ball", "lacrosse": "lacrosse stick", "woman’s hat": "sun hat", "woman’s boot": "boot",
    "woman’s sandal": "sandal", "man’s shoe": "shoe", "woman’s clothes": "blouse",
    "rescue worker’s helmet": "safety helmet", "couch and lamp": "couch", "thong sandal": "flip-flop",
    "open mailbox with raised flag": "full mailbox", "open mailbox with lowered flag": "empty mailbox",
    "closed mailbox with lowered flag": "closed mailbox", "ballot box with ballot": "ballot box",
    "umbrella with rain drops": "umbrella in rain", "umbrella on ground": "beach parasol",
    "snowman without snow": "bare snowman", "sun with face": "smiling sun", "full moon face": "smiling moon",
    "new moon face": "dark moon face", "first quarter moon face": "left moon face",
    "last quarter moon face": "right moon face", "page facing up": "sheet of paper", "page with curl": "curled page",
    "leaf fluttering in wind": "fluttering leaves", "drop of blood": "blood drop", "2nd place medal": "silver medal",
    "3rd place medal": "bronze medal", "pig nose": "pig snout", "sheaf of rice": "rice plant",
    "hourglass not done": "running hourglass", "front-facing baby chick": "fluffy chick", "pot of food": "stew pot",
    "field hockey": "hockey stick", "ice hockey": "ice hockey stick", "cloud with lightning": "storm cloud",
    "chart increasing": "rising chart", "chart decreasing": "falling chart",
    "cloud with rain": "rain cloud", "cloud with snow": "snow cloud", "locked with key": "padlock with key",
    "locked with pen": "padlock with pen", "unlocked": "open padlock", "bubbles": "soap bubbles",
}  # fmt: skip

# No article and nothing to count.
MASS = {
    "popcorn", "luggage", "bacon", "butter", "salt", "bread", "cheese", "corn", "broccoli", "garlic", "lettuce",
    "ginger root", "sushi", "spaghetti", "ice", "coral", "fire", "canned food", "sake", "yarn", "thread", "wood",
    "dna", "soap", "falafel", "fondue", "green salad", "oden", "cooked rice", "curry rice", "shaved ice",
    "money with wings", "mount fuji",
}  # fmt: skip

# Always plural in English: no article, "are".
PLURAL = {
    "grapes", "cherries", "blueberries", "peanuts", "beans", "pancakes", "french fries", "chopsticks",
    "fork and knife", "paw prints", "glasses", "sunglasses", "goggles", "jeans", "gloves", "socks", "shorts", "briefs",
    "shopping bags", "ballet shoes", "prayer beads", "maracas", "headphones", "skis", "scissors", "chains",
    "crossed swords", "sparkles", "fireworks", "nesting dolls", "control knobs", "soap bubbles", "clinking beer mugs",
    "clinking glasses", "houses", "admission tickets", "musical notes", "bookmark tabs", "linked paperclips",
    "hammer and pick", "hammer and wrench", "japanese dolls", "film frames", "books", "card index dividers",
    "fluttering leaves",
}  # fmt: skip

IRREGULAR_PLURALS = {
    "mouse": "mice", "tooth": "teeth", "goose": "geese", "ox": "oxen", "fish": "fish",
    "tropical fish": "tropical fish", "sheep": "sheep",
    "deer": "deer", "moose": "moose", "bison": "bison", "squid": "squid", "shrimp": "shrimp", "die": "dice",
    "wolf": "wolves", "maple leaf": "maple leaves", "fallen leaf": "fallen leaves",
    "house with garden": "houses with garden", "cactus": "cacti",
    "kitchen knife": "kitchen knives", "scarf": "scarves",  "octopus": "octopuses",
    "cup of tea": "cups of tea", "glass of milk": "glasses of milk", "cut of meat": "cuts of meat",
    "roll of paper": "rolls of paper", "sheet of paper": "sheets of paper", "umbrella in rain": "umbrellas in rain",
    "padlock with key": "padlocks with key", "padlock with pen": "padlocks with pen",
    "sun behind cloud": "suns behind cloud", "water buffalo": "water buffalo",
    "sun behind small cloud": "suns behind small cloud", "sun behind large cloud": "suns behind large cloud",
    "sun behind rain cloud": "suns behind rain cloud", "statue of liberty": "statues of liberty",
    "bow and arrow": "bows and arrows",
    "nut and bolt": "nuts and bolts", "computer mouse": "computer mice",

}  # fmt: skip

# "an" or "a" where the first letter misleads.
ARTICLES = {
    "unicorn": "a",
    "ewe": "a",
    "hourglass": "an",
    "x-ray": "an",
    "euro banknote": "a",
    "ukulele": "a",
    "unicycle": "a",
}

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
